"""Time as callers give it, turned into the int64 nanoseconds that the inside works with; and the text of those.

Called once a packet only where the caller gives seconds; `timestamp_ns` goes in as it is.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from numbers import Complex, Number, Real
from operator import index
from typing import SupportsIndex

__all__ = ["NS", "Timestamp", "is_seconds", "seconds_to_ns", "time_of", "to_ns"]

NS = 1_000_000_000
NS_LIMIT = 2**62 - 1  # about 146 years either way: differences of two times still fit 64 bits, and both ends stay free for never and always
Timestamp = float | datetime
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def seconds_to_ns(seconds: float, name: str = "a time") -> int:
    """Seconds as nanoseconds, rounded to the nearest one. ValueError for what is no finite number or beyond 2**62 ns.

    Args:
        seconds: a real number of any type. A float of today has no more than a quarter of a microsecond to tell: one that is the
            nearest float to a whole number of microseconds stands for just that.
        name: what it is, for the message.
    """
    if seconds != seconds or abs(seconds) == float("inf"):
        raise ValueError(f"{name} is a finite number of seconds, not {seconds!r}")
    if isinstance(seconds, float) and abs(seconds) < NS_LIMIT / NS:
        microseconds = round(seconds * 1e6)
        if microseconds / 1e6 == seconds:
            return _bounded(microseconds * 1000, name)
    whole = int(seconds)
    return _bounded(whole * NS + round(float(seconds - whole) * NS), name)


def _bounded(ns: int, name: str) -> int:
    if not -NS_LIMIT <= ns <= NS_LIMIT:
        raise ValueError(f"{name} lies less than 2**62 ns from 1970, not at {ns} ns")
    return ns


def is_seconds(value: object) -> bool:
    """A real number, also one of numpy's, or a Decimal (which is a Number, and no Real); bool is none."""
    if isinstance(value, (int, float, Real)):
        return not isinstance(value, bool)
    return isinstance(value, Number) and not isinstance(value, Complex)


def to_ns(timestamp: Timestamp | None, timestamp_ns: SupportsIndex | None = None, name: str = "timestamp") -> int:
    """The one of the two that is given, in nanoseconds since 1970-01-01 UTC; now, where neither is.

    Args:
        timestamp: seconds, or an aware datetime.
        timestamp_ns: integer nanoseconds.
        name: the first one's, for messages.
    """
    if timestamp_ns is not None:
        if timestamp is not None:
            raise TypeError(f"give {name} or timestamp_ns, not both")
        try:
            ns = None if isinstance(timestamp_ns, bool) else index(timestamp_ns)
        except TypeError:
            ns = None
        if ns is None:
            raise TypeError(f"timestamp_ns is an int, not {type(timestamp_ns).__name__}: {timestamp_ns!r:.80}")
        return _bounded(ns, "timestamp_ns")
    if timestamp is None:
        return time.time_ns()
    if isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            raise ValueError(f"{name} is a datetime without a time zone, which is no point in time: {timestamp!r}")
        delta = timestamp - _EPOCH
        return _bounded((delta.days * 86400 + delta.seconds) * NS + delta.microseconds * 1000, name)
    if not is_seconds(timestamp):
        raise TypeError(f"{name} is seconds or an aware datetime, not {type(timestamp).__name__}: {timestamp!r:.80}")
    return seconds_to_ns(timestamp, name)


def time_of(seen_ns: int | None) -> str:
    """`2026-01-31T12:00:00.123456789Z`, or - for none, or the plain number of seconds where no calendar reaches."""
    if seen_ns is None:
        return "-"
    seconds, ns = divmod(seen_ns, NS)
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return f"{seconds}.{ns:09}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns:09}Z"
