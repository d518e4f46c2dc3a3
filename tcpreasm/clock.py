"""Time as callers give it, turned into the int64 nanoseconds that the inside works with.

Called once a packet only where the caller gives seconds; `timestamp_ns` goes in as it is.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone

__all__ = ["NS", "Timestamp", "seconds_to_ns", "to_ns"]

NS = 1_000_000_000
NS_LIMIT = 2**62 - 1  # about 146 years either way: differences of two times still fit 64 bits, and both ends stay free for never and always
Timestamp = float | datetime
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def seconds_to_ns(seconds: float) -> int:
    """Seconds as nanoseconds, rounded to the nearest one. ValueError for what is no finite number or beyond 2**62 ns."""
    whole = int(seconds) if seconds == seconds and abs(seconds) != float("inf") else None
    if whole is None:
        raise ValueError(f"a time is a finite number of seconds, not {seconds!r}")
    ns = whole * NS + round((seconds - whole) * NS)
    return _bounded(ns)


def _bounded(ns: int) -> int:
    if not -NS_LIMIT <= ns <= NS_LIMIT:
        raise ValueError(f"a time lies less than 2**62 ns from 1970, not at {ns} ns")
    return ns


def to_ns(timestamp: Timestamp | None, timestamp_ns: int | None = None) -> int:
    """The one of the two that is given, in nanoseconds since 1970-01-01 UTC; now, where neither is.

    Args:
        timestamp: seconds, or an aware datetime.
        timestamp_ns: integer nanoseconds.
    """
    if timestamp_ns is not None:
        if timestamp is not None:
            raise TypeError("give timestamp or timestamp_ns, not both")
        if isinstance(timestamp_ns, bool) or not isinstance(timestamp_ns, int):
            raise TypeError(f"timestamp_ns is an int, not {type(timestamp_ns).__name__}: {timestamp_ns!r}")
        return _bounded(timestamp_ns)
    if timestamp is None:
        return time.time_ns()
    if isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            raise ValueError(f"a datetime without a time zone is no point in time: {timestamp!r}")
        delta = timestamp - _EPOCH
        return _bounded((delta.days * 86400 + delta.seconds) * NS + delta.microseconds * 1000)
    if isinstance(timestamp, bool) or not isinstance(timestamp, (int, float)):
        raise TypeError(f"a timestamp is seconds or an aware datetime, not {type(timestamp).__name__}: {timestamp!r}")
    return seconds_to_ns(timestamp)
